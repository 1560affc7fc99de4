"""The Hugging Face hub and its cache: repositories at one commit, downloads with progress, and errors in words."""
