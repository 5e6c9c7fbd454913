package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen is where a command writes to: how wide it is and whether it has colours.
type screen struct {
	to io.Writer
	// width is in columns, 0 for no limit.
	width  int
	colour bool
	// terminal tells that it can be cleared.
	terminal bool
}

// newScreen looks at the output. What is no terminal has no width, for a program
// may read it; COLUMNS in the environment says otherwise. NO_COLOR, whatever its
// value, turns colours off (https://no-color.org).
func newScreen(out io.Writer) screen {
	s := screen{to: out}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal = true
		s.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			s.width = width
		}
	}
	if width, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && width > 0 {
		s.width = width
	}
	return s
}

// colour is an SGR parameter (ECMA-48).
type colour int

const (
	plain  colour = 0
	bold   colour = 1
	red    colour = 31
	green  colour = 32
	yellow colour = 33
)

func (s screen) paint(c colour, text string) string {
	if !s.colour || c == plain || text == "" {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// clear empties a terminal and goes to its upper left.
func (s screen) clear() {
	if s.terminal {
		fmt.Fprint(s.to, "\x1b[H\x1b[2J")
	}
}

// field writes a name and its text, wrapped so that what follows stands under it.
func (s screen) field(name string, c colour, text string) {
	const indent = 12
	width := 0
	if s.width > 0 {
		width = max(s.width-indent, leastWidth)
	}
	for i, line := range wrap(text, width) {
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(s.to, "%-*s%s\n", indent, name, s.paint(c, line))
	}
}

// leastWidth is what text is wrapped to on the narrowest of screens.
const leastWidth = 20

// wrap breaks a text at spaces into lines of at most so many columns; 0 and less
// is no limit. A word that is longer has a line of its own: it may be a command's,
// to be copied.
func wrap(text string, width int) []string {
	if width <= 0 {
		return []string{text}
	}
	width = max(width, leastWidth)
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// cell is one field of a table.
type cell struct {
	text string
	c    colour
}

// row is a line of a table. What its note says stands under it on a screen, and
// behind it where lines are as long as they like.
type row struct {
	cells []cell
	note  cell
}

// noteIndent is by how much a note stands to the right.
const noteIndent = 2

// table writes rows under their heads, and loses nothing: where they are wider than
// the screen, the first column gives way, and what is longer than that has a line of
// its own, of which it can be copied.
func (s screen) table(heads []string, rows []row) {
	widths := make([]int, len(heads))
	for i, h := range heads {
		widths[i] = len(h)
	}
	for _, r := range rows {
		for i, c := range r.cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	if s.width > 0 {
		over := 2*(len(heads)-1) - s.width
		for _, w := range widths {
			over += w
		}
		if over > 0 {
			widths[0] = max(widths[0]-over, min(widths[0], leastWidth))
		}
	}
	head := row{cells: make([]cell, len(heads))}
	for i, h := range heads {
		head.cells[i] = cell{h, bold}
	}
	for _, r := range append([]row{head}, rows...) {
		s.row(widths, r)
	}
}

func (s screen) row(widths []int, r row) {
	var b strings.Builder
	for i, c := range r.cells {
		if i == 0 && utf8.RuneCountInString(c.text) > widths[0] {
			fmt.Fprintln(s.to, s.paint(c.c, c.text))
			c.text = ""
		}
		b.WriteString(s.paint(c.c, c.text))
		if i < len(r.cells)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
		}
	}
	if s.width == 0 && r.note.text != "" {
		b.WriteString(s.paint(r.note.c, ": "+r.note.text))
	}
	fmt.Fprintln(s.to, strings.TrimRight(b.String(), " "))
	if s.width == 0 || r.note.text == "" {
		return
	}
	for _, line := range wrap(r.note.text, max(s.width-noteIndent, 1)) {
		fmt.Fprintf(s.to, "%*s%s\n", noteIndent, "", s.paint(r.note.c, line))
	}
}
