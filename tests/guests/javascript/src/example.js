// The Serverless AI example of Spin's documentation, for @spinframework/spin-llm, with its names.

import { AutoRouter } from "itty-router";
import { EmbeddingModels, generateEmbeddings, infer, InferencingModels } from "@spinframework/spin-llm";

export const router = AutoRouter();

router.get("/", () => {
  const embeddings = generateEmbeddings(EmbeddingModels.AllMiniLmL6V2, ["someString"]);
  console.log(embeddings.embeddings);
  const prompt = "You are a stand up comedy writer. Tell me a joke.";
  const result = infer(InferencingModels.Llama2Chat, prompt);
  return new Response(result.text, { headers: { "content-type": "text/plain" } });
});
