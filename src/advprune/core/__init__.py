"""What every room uses: settings, errors, files, devices, progress, resuming."""
