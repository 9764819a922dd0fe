// One call of the interface, as the body's JSON asks for: {"function": …, "arguments": […]}.

import { generateEmbeddings, infer } from "@spinframework/spin-llm";

function asJson(value) {
  return JSON.stringify(value, (_, item) =>
    ArrayBuffer.isView(item) ? Array.from(item) : item,
  );
}

async function answer(request) {
  const { function: name, arguments: given } = await request.json();
  try {
    return asJson({ infer, generateEmbeddings }[name](...given));
  } catch (error) {
    return asJson({ error: error.payload.tag, message: error.payload.val });
  }
}

addEventListener("fetch", (event) => {
  event.respondWith(answer(event.request).then((body) => new Response(body)));
});
