"""The `encoder` engine: models that read text and write none, on transformers' own modules.

`text_rows` cuts texts into rows of tokens, `encoder_loader` reads and tries the model, `pooling` makes one
vector of a text's tokens, `encoder_tasks` says what goes in and out for each task, `encoder_engine` computes batches.
"""
