"""Where a job runs: its folder, the store, the device, the processes, what a person sees."""
