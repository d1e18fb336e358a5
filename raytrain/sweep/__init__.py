"""What a study will run: spaces, designs, halving, the schedule of segments, the plan. Pure: no torch, no ray."""
