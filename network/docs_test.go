package network_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentationNamesTestsThatExist: a page that says which test holds what
// is wrong once that test has another name.
func TestDocumentationNamesTestsThatExist(t *testing.T) {
	root := os.DirFS("..")
	defined, named := map[string]bool{}, map[string]string{}
	definition := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	mention := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		code, page := strings.HasSuffix(path, "_test.go"), filepath.Ext(path) == ".md"
		if !code && !page {
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		if code {
			for _, m := range definition.FindAllStringSubmatch(string(text), -1) {
				defined[m[1]] = true
			}
			return nil
		}
		for _, m := range mention.FindAllStringSubmatch(string(text), -1) {
			named[m[1]] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(named) == 0 {
		t.Error("no page names any test")
	}
	for test, page := range named {
		if !defined[test] {
			t.Errorf("%s names %s, which does not exist", page, test)
		}
	}
}
