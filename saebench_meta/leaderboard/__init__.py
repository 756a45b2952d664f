"""The leaderboard: records that others may believe, what they say side by side, and the pages that show it."""
