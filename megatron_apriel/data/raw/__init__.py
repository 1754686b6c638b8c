"""Raw data: files and records of every published form, their images, and what was wrong with them. No torch."""
