// Markdown as a model writes it, safely: of HTML nothing is kept but what markdown itself makes.
import DOMPurify from "dompurify";
import { Marked, type Token, type Tokens } from "marked";
import { memo } from "preact/compat";
import { useEffect, useRef, useState } from "preact/hooks";

const escape = (text: string): string =>
  text.replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);

const mathStart = /\$|\\\(|\\\[/;
const blockMath = /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n|$)/;
const inlineMath = /^(?:\\\(([\s\S]+?)\\\)|\$\$([^\n]+?)\$\$|\$(?![\s$])((?:\\[\s\S]|[^\\$\n])+?)(?<![\s\\])\$(?![\d$]))/;

function mathToken(type: string, match: RegExpExecArray): Tokens.Generic {
  return { type, raw: match[0], text: match.slice(1).find((one) => one !== undefined)!.trim() };
}

const marked = new Marked({
  gfm: true,
  breaks: false,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "\u2611 " : "\u2610 "),
  },
  extensions: [
    {
      name: "blockMath",
      level: "block",
      start: (text) => text.match(/\$\$|\\\[/)?.index,
      tokenizer(text) {
        const match = blockMath.exec(text);
        return match ? mathToken("blockMath", match) : undefined;
      },
      renderer: (token) => `<span class="math display">${escape(token.text)}</span>`,
    },
    {
      name: "inlineMath",
      level: "inline",
      start: (text) => text.match(mathStart)?.index,
      tokenizer(text) {
        const match = inlineMath.exec(text);
        return match ? mathToken("inlineMath", match) : undefined;
      },
      renderer: (token) => `<span class="math">${escape(token.text)}</span>`,
    },
  ],
});

const CLASSES = /^(math|math display|(?:hljs-|language-)[\w -]*)$/;
const TAGS = "p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote strong em del code pre a table thead tbody tr th td span".split(" ");
const purify = DOMPurify(window);
purify.addHook("uponSanitizeAttribute", (_, data) => {
  if (data.attrName === "class" && !CLASSES.test(data.attrValue)) data.keepAttr = false;
});
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

export function safeHtml(tokens: Token[]): string {
  return purify.sanitize(marked.parser(tokens), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "title", "align", "start", "class"],
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
  });
}

/** Sets formulas, once the library for that is there. */
async function setMath(within: HTMLElement): Promise<void> {
  const places = [...within.querySelectorAll<HTMLElement>(".math:not([data-set])")];
  if (!places.length) return;
  const { default: temml } = await import("temml");
  for (const place of places) {
    if (place.hasAttribute("data-set")) continue;
    place.setAttribute("data-set", "");
    const text = place.textContent!;
    try {
      temml.render(text, place, { displayMode: place.classList.contains("display"), throwOnError: true, trust: false, strict: false });
    } catch {
      place.textContent = text; // what is no formula stays as it was written
    }
  }
}

const Html = memo(function Html({ raw, tokens }: { raw: string; tokens: Token[] }) {
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    place.current!.innerHTML = safeHtml(tokens);
    void setMath(place.current!);
  }, [raw]);
  return <div class="block" ref={place} />;
}, (before, after) => before.raw === after.raw);

const Code = memo(function Code({ text, language, open }: { text: string; language: string; open: boolean }) {
  const place = useRef<HTMLElement>(null);
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    place.current!.textContent = text;
    if (open || !language || text.length > 60_000) return;
    let gone = false;
    void import("./highlight").then(({ highlighted }) => {
      const html = gone ? null : highlighted(text, language);
      if (html !== null && place.current) {
        place.current.innerHTML = purify.sanitize(html, { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] });
      }
    });
    return () => {
      gone = true;
    };
  }, [text, language, open]);
  const copy = async () => {
    await navigator.clipboard.writeText(text).catch(() => {});
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "text"}</span>
        <button class="quiet" onClick={copy} aria-label="Copy the code">
          {copied ? "Copied" : "Copy"}
        </button>
      </figcaption>
      <pre tabIndex={0}>
        <code ref={place} />
      </pre>
    </figure>
  );
});

/** A text in markdown. While it is being written only what comes last is drawn anew. */
export function Markdown({ text, writing }: { text: string; writing: boolean }) {
  const tokens = marked.lexer(text).filter((token) => token.type !== "space");
  return (
    <div class="markdown">
      {tokens.map((token, place) =>
        token.type === "code" ? (
          <Code
            key={place}
            text={token.text}
            language={(token.lang ?? "").split(/\s/)[0].slice(0, 24)}
            open={writing && place === tokens.length - 1}
          />
        ) : (
          <Html key={place} raw={token.raw} tokens={[token]} />
        ),
      )}
    </div>
  );
}
