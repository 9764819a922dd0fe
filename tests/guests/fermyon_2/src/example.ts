// The Serverless AI example of Spin's documentation, for @fermyon/spin-sdk 2.

import { Llm, ResponseBuilder } from "@fermyon/spin-sdk";

export async function handler(_request: Request, response: ResponseBuilder) {
  const embeddings = Llm.generateEmbeddings(Llm.EmbeddingModels.AllMiniLmL6V2, ["someString"]);
  console.log(embeddings.embeddings.length);
  const result = Llm.infer(
    Llm.InferencingModels.Llama2Chat,
    "You are a stand up comedy writer. Tell me a joke.",
  );
  response.set({ "content-type": "text/plain" });
  response.send(result.text);
}
