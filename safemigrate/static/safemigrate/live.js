"use strict";

// Brings the page of a run up to date in place while it moves: what is focused, opened or scrolled to stays.
// Without this script the page loads itself again.
{
    const EVERY = 2000;

    const replace = (part, html) => {
        const focused = part.contains(document.activeElement) ? document.activeElement.id : null;
        const opened = [...part.querySelectorAll("details[open]")].map(details => details.id);
        part.innerHTML = html;
        opened.forEach(id => document.getElementById(id)?.setAttribute("open", ""));
        if (focused !== null) {
            (document.getElementById(focused) ?? part.querySelector("button, a") ?? document.body).focus();
        }
    };

    const update = fresh => {
        for (const part of document.querySelectorAll("[data-live]")) {
            const next = fresh.getElementById(part.id);
            if (next && next.innerHTML !== part.innerHTML) {
                replace(part, next.innerHTML);
            }
        }
    };

    const look = async () => {
        const response = await fetch(location.href);
        if (response.redirected) {
            location.reload(); // logged out in the meantime
        } else if (response.ok) {
            update(new DOMParser().parseFromString(await response.text(), "text/html"));
        }
    };

    const tick = async () => {
        if (!document.querySelector("[data-moving]")) {
            return;
        }
        if (!document.hidden) {
            await look().catch(() => {}); // the next one may come through
        }
        setTimeout(tick, EVERY);
    };

    document.addEventListener("DOMContentLoaded", () => setTimeout(tick, EVERY));
}
