"""The OpenAI API: its JSON in and out, on top of the same requests as /infer."""
