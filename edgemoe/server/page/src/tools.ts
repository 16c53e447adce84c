// Tools and schemas as a person writes them: JSON texts.

/** What is wrong with a text, in words; nothing where it can be used. */
export function fault(read: (text?: string) => unknown, text?: string): string {
  try {
    read(text);
    return "";
  } catch (error) {
    return (error as Error).message;
  }
}

/** The tools of a text: functions, alone or as OpenAI's interface has them; none for an empty text. Throws for others. */
export function toolsOf(text?: string): object[] {
  if (!text?.trim()) return [];
  const found = JSON.parse(text);
  return (Array.isArray(found) ? found : [found]).map((one) => {
    const tool = one?.function ?? one;
    if (typeof tool?.name !== "string") throw new Error("expected functions with a name, a description and parameters");
    return { type: "function", function: tool };
  });
}

/** The schema of a text; none for an empty one. Throws for others. */
export function schemaOf(text?: string): object | null {
  if (!text?.trim()) return null;
  const found = JSON.parse(text);
  if (typeof found !== "object" || found === null || Array.isArray(found)) throw new Error("expected a JSON object");
  return found;
}

/** JSON with a line for each value; another text as it stands. */
export function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
