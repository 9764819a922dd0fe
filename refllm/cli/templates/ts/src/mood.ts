// What the application does, without Spin: a test gives it another `Infer`.

const MODEL = "llama2-chat";
const MOODS = ["positive", "negative", "neutral"];

export interface Options {
  maxTokens: number;
  temperature: number;
}

export type Infer = (
  model: string,
  prompt: string,
  options: Options,
) => { text: string } | Promise<{ text: string }>;

export async function mood(text: string, infer: Infer): Promise<string> {
  const prompt = `[INST] <<SYS>>
Respond with a single positive, negative, or neutral.
<</SYS>>

${text} [/INST]`;
  const answer = await infer(MODEL, prompt, { maxTokens: 8, temperature: 0 });
  const word = answer.text.trim().toLowerCase();
  return MOODS.includes(word) ? word : "unsure";
}

export async function answer(request: Request, infer: Infer): Promise<Response> {
  const headers = { "content-type": "text/plain" };
  try {
    return new Response(await mood(await request.text(), infer), { headers });
  } catch {
    return new Response("try again later", { status: 503, headers });
  }
}
