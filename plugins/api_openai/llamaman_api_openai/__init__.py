"""The OpenAI dialect: what `llamaman.plugins` loads under the name api_openai."""
