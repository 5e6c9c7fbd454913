package network_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// looksForLeaks is what a TestMain says that fails where a goroutine outlives the tests.
var looksForLeaks = regexp.MustCompile(`(?s)\nfunc TestMain\(.*\bgoleak\.(VerifyTestMain|Find)\(`)

// TestInvariant8EveryPackageLooksForLeaks: whichever package has tests, of whatever
// build tag, fails if a goroutine outlives them.
func TestInvariant8EveryPackageLooksForLeaks(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-tags=packages,mutants,runtime,flannel", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	tested := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		files := slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		if len(files) == 0 {
			continue
		}
		tested++
		if !slices.ContainsFunc(files, func(name string) bool {
			text, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			return looksForLeaks.Match(text)
		}) {
			t.Errorf("%s has tests and no TestMain that looks for leaks", p.ImportPath)
		}
	}
	if tested < 20 {
		t.Errorf("%d packages have tests", tested)
	}
}
