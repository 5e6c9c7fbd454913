package doctor_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestCommandsCanBeGiven to a shell as they are: none of the doctor's, here and in path,
// has a word in it that is yet to be filled in, and a shell reads each.
func TestCommandsCanBeGiven(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.go", "path/*.go"} {
		some, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, some...)
	}
	verb := regexp.MustCompile(`%[a-z]`)
	// PREFIX and INTERFACE, <peer> and […], and what stands for more.
	open := regexp.MustCompile(`\b[A-Z]{3,}\b|<[a-z-]+>|\[[a-z-]+\]|…|\.\.\.`)
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			switch fn := call.Fun.(type) {
			case *ast.Ident:
				ok = fn.Name == "Command"
			case *ast.SelectorExpr:
				ok = fn.Sel.Name == "Command"
			default:
				ok = false
			}
			if !ok {
				return true
			}
			found++
			at := set.Position(call.Pos())
			literal, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the command is no literal", at)
				return true
			}
			format, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			if word := open.FindString(format); word != "" {
				t.Errorf("%s: %q is to be filled in in %q", at, word, format)
			}
			filled := verb.ReplaceAllString(strings.ReplaceAll(format, "%%", "%"), "x")
			if out, err := exec.CommandContext(t.Context(), "sh", "-n", "-c", filled).CombinedOutput(); err != nil {
				t.Errorf("%s: a shell does not read %q: %v: %s", at, filled, err, out)
			}
			return true
		})
	}
	if found < 40 {
		t.Errorf("%d commands were found", found)
	}
}
