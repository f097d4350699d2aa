from importlib import import_module

Migration = import_module("polls.migrations.0002_alter_question_pub_date").Migration
