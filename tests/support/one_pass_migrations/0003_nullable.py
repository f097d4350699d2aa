from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("polls", "0002_alter_question_pub_date")]
    operations = [
        migrations.AddField("question", "expires_date", models.DateTimeField("expires at", null=True))
    ]
