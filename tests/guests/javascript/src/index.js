// A guest for @spinframework/spin-llm: GET is the example, POST makes one call, see call.js.

import * as sdk from "@spinframework/spin-llm";

import { answer } from "./call.js";
import { router as example } from "./example.js";

async function called(request) {
  return new Response(answer(sdk, await request.text()));
}

addEventListener("fetch", (event) => {
  const { request } = event;
  event.respondWith(request.method === "POST" ? called(request) : example.fetch(request));
});
