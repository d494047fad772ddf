"""A bundle behind HTTP, in the words of OpenAI's API: one model, one request at a time, the others wait their turn.

The engine works in the process's first thread, where signals arrive; HTTP has a thread of its own.
"""
