"""The same pictures to turn and to read off, made with plotly; one module for each kind."""
