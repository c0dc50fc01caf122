"""What a round is made of: stages and their strategies, domains, engines; and the rooms behind them."""
