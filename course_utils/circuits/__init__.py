"""The method: the spliced pass, masks, attribution, learning, evaluation, interventions."""
