"""What a run leaves behind: weights, the merged model and its proof, report and model card."""
