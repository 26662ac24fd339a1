"""What is submitted to Slurm and Kubernetes: templates, and how they are filled in."""
