"""What goes into the lab's guest: the workload, its units and the scripts around an app-consistent point."""
