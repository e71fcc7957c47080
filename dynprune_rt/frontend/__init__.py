"""torch.nn.Module -> IR: capture with torch.export, translate ATen nodes, bring gates to canonical form."""
