"""One short script a question, each with a table and a picture:  python -m experiments.NAME"""
