// A guest for @fermyon/spin-sdk 2: GET is the example, POST makes one call, see call.js.

import { Llm, ResponseBuilder } from "@fermyon/spin-sdk";

import { answer } from "./call.js";
import { handler as example } from "./example";

async function called(request: Request, response: ResponseBuilder) {
  response.send(answer(Llm, await request.text()));
}

addEventListener("fetch", (event: any) => {
  const handler = event.request.method === "POST" ? called : example;
  event.respondWith(
    new Promise((resolve, reject) => {
      handler(event.request, new ResponseBuilder(resolve)).catch(reject);
    }),
  );
});
