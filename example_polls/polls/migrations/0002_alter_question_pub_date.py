from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("polls", "0001_initial")]

    operations = [
        migrations.AlterField(
            model_name="question",
            name="pub_date",
            field=models.DateTimeField("date published"),
        ),
        migrations.AddField(
            model_name="question",
            name="vote_count",
            field=models.PositiveIntegerField(db_default=0, editable=False),
        ),
        migrations.AddField(
            model_name="question",
            name="url_name",
            field=models.SlugField(max_length=60, db_default="", db_index=False, editable=False),
        ),
    ]
