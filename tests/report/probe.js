// Measures a page from the inside, and sends the result to the page around it.
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

  /** Any colour of CSS as [red, green, blue, alpha], each 0 to 1. */
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data, (part) => part / 255);
  };

  const over = ([r, g, b, alpha], below) =>
    [r, g, b].map((part, i) => part * alpha + below[i] * (1 - alpha));

  const background = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor);
    const parent = element.parentElement;
    // The body's background is that of the canvas, which is opaque.
    return own[3] === 1 ? own.slice(0, 3) : over(own, parent ? background(parent) : [1, 1, 1]);
  };

  const luminance = (colour) => {
    const [r, g, b] = colour.map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  /** WCAG's ratio of an element's text to what lies below it. */
  const contrast = (element) => {
    const style = getComputedStyle(element);
    const below = background(element);
    const text = over(parse(element.closest("svg") ? style.fill : style.color), below);
    const [dark, light] = [luminance(text), luminance(below)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };

  /** What kind of text an element is, to see that all kinds have been measured. */
  const kindOf = (element) =>
    ["svg", "mark", "a", "th", "td", ".warnings", "code", "p"].find((kind) =>
      element.closest(kind),
    ) ?? element.localName;

  const measureContrast = () => {
    const lowest = {};
    for (const element of document.querySelectorAll("body *")) {
      const texts = Array.from(element.childNodes).filter(
        (node) => node.nodeType === Node.TEXT_NODE && node.data.trim(),
      );
      if (texts.length && !element.closest("script") && element.getClientRects().length) {
        const kind = kindOf(element);
        lowest[kind] = Math.min(lowest[kind] ?? Infinity, contrast(element));
      }
    }
    return lowest;
  };

  /** Click twice on each heading. Result: for each table and column the cells after each click. */
  const measureSorting = () =>
    Array.from(document.querySelectorAll("table.sortable"), (table) =>
      Array.from(table.tHead.rows[0].cells, (header, column) => {
        const button = header.querySelector("button");
        button.focus();
        const clicks = [1, 2].map(() => {
          button.click();
          return {
            order: header.getAttribute("aria-sort"),
            cells: Array.from(table.tBodies[0].rows, (row) => row.cells[column].textContent),
            names: Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent),
          };
        });
        return {
          header: button.textContent,
          focused: document.activeElement === button,
          others: Array.from(header.parentElement.children, (other) =>
            other.getAttribute("aria-sort"),
          ).filter((order) => order !== "none").length,
          clicks,
        };
      }),
    );

  window.addEventListener("load", () => {
    for (const details of document.querySelectorAll("details")) {
      details.open = true;
    }
    const result = {
      width: innerWidth,
      scrollWidth: document.documentElement.scrollWidth,
      scrolling: Array.from(document.querySelectorAll(".scroll")).filter(
        (element) => element.scrollWidth > element.clientWidth,
      ).length,
      dark: matchMedia("(prefers-color-scheme: dark)").matches,
      contrast: measureContrast(),
      sorting: measureSorting(),
    };
    parent.postMessage(JSON.stringify(result), "*");
  });
})();
