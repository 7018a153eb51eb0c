"""Files about recipients, written where the DAG's author asks for them: whole, or not at all."""
