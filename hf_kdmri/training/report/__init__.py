"""What a finished run tells: pooled numbers, figures, the page, the student's card."""
