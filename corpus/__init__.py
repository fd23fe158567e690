"""From files and hub data sets to token files: sources, sentences, tokenizer, token_files."""
