"""The demo: layout and events in Gradio; everything it shows comes from the library."""
