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
	for i, line := range wrap(text, s.width-indent) {
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(s.to, "%-*s%s\n", indent, name, s.paint(c, line))
	}
}

// leastWidth is what text is wrapped to on the narrowest of screens.
const leastWidth = 20

// wrap breaks a text at spaces into lines of at most so many columns; 0 and less
// is no limit. A word that is longer has a line of its own.
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

// table writes rows under their heads. Where they are wider than the screen, the
// elastic column is cut, and after it the last one, which is cut as far as it
// takes.
func (s screen) table(heads []string, rows [][]cell, elastic int) {
	widths := make([]int, len(heads))
	for i, h := range heads {
		widths[i] = len(h)
	}
	for _, row := range rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	if s.width > 0 {
		over := 2*(len(heads)-1) - s.width
		for _, w := range widths {
			over += w
		}
		for _, i := range []int{len(heads) - 1, elastic} {
			least := min(widths[i], max(len(heads[i]), 12))
			if cut := min(over, widths[i]-least); cut > 0 {
				widths[i] -= cut
				over -= cut
			}
		}
	}
	head := make([]cell, len(heads))
	for i, h := range heads {
		head[i] = cell{h, bold}
	}
	for _, row := range append([][]cell{head}, rows...) {
		var b strings.Builder
		for i, c := range row {
			text := shorten(c.text, widths[i])
			b.WriteString(s.paint(c.c, text))
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
			}
		}
		fmt.Fprintln(s.to, strings.TrimRight(b.String(), " "))
	}
}

// shorten cuts a text to so many columns and marks that.
func shorten(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:max(width-1, 0)]) + "…"
}
