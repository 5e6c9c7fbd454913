package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/cmd/internal/ripstopd"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/subnet"
)

var update = flag.Bool("update", false, "write the table of flags anew")

const configurationPage = "../../Documentation/configuration.md"

// flagTable is the page's table of flags: what --help says.
func flagTable() string {
	var b strings.Builder
	b.WriteString("| flag, variable | default | |\n|---|---|---|\n")
	flags, _ := ripstopd.Flags()
	flags.VisitAll(func(f *pflag.Flag) {
		_, text := pflag.UnquoteUsage(f)
		value, variable := strings.Trim(f.DefValue, "[]"), " `"+settings.EnvironmentName(ripstopd.EnvPrefix, f.Name)+"`"
		if value != "" {
			value = "`" + value + "`"
		}
		if f.Name == "version" {
			variable = ""
		}
		fmt.Fprintf(&b, "| `--%s`%s | %s | %s |\n", f.Name, variable, value, strings.ReplaceAll(text, "|", "\\|"))
	})
	return b.String()
}

// TestConfigurationPageHasEveryFlag, with its variable, default and meaning, and none
// that there is not.
func TestConfigurationPageHasEveryFlag(t *testing.T) {
	page := readFile(t, configurationPage)
	table := regexp.MustCompile(`(?m)^\| flag, variable \|.*\n(\|.*\n)+`)
	if *update {
		page = table.ReplaceAllLiteralString(page, flagTable())
		if err := os.WriteFile(configurationPage, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(flagTable(), table.FindString(page)); d != "" {
		t.Errorf("%s differs from the flags (go test ./cmd/ripstopd -run Configuration -update writes it anew):\n%s", configurationPage, d)
	}
}

// TestConfigurationPageHasEveryKey of the network config, and none that there is not.
func TestConfigurationPageHasEveryKey(t *testing.T) {
	page := readFile(t, configurationPage)
	rows := func(heading string) (keys []string) {
		_, section, _ := strings.Cut(page, "\n"+heading+"\n")
		section, _, _ = strings.Cut(section, "\n#")
		for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*)\\|").FindAllStringSubmatch(section, -1) {
			for _, key := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(row[1], -1) {
				keys = append(keys, key[1])
			}
		}
		slices.Sort(keys)
		return keys
	}
	form := regexp.MustCompile(`(?s)type configJSON struct \{\n(.*?)\n\}`).FindStringSubmatch(readFile(t, "../../subnet/config.go"))
	if form == nil {
		t.Fatal("the config's form is not found in the code")
	}
	var want []string
	for _, line := range strings.Split(form[1], "\n") {
		want = append(want, strings.Fields(line)[0])
	}
	slices.Sort(want)
	got := rows("## The network config")
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("keys of the network config:\n%s", d)
	}
	for _, key := range got {
		if unknown := subnet.UnknownConfigKeys([]byte(`{"` + key + `": 1}`)); len(unknown) > 0 {
			t.Errorf("%v mean nothing", unknown)
		}
	}
	want = []string{"Type"}
	for i := range reflect.TypeFor[vxlan.Options]().NumField() {
		want = append(want, reflect.TypeFor[vxlan.Options]().Field(i).Name)
	}
	slices.Sort(want)
	if d := cmp.Diff(want, rows("### Backend")); d != "" {
		t.Errorf("keys of Backend:\n%s", d)
	}
}

// TestConfigurationPageShowsWhatWorks: its configs are read without a complaint.
func TestConfigurationPageShowsWhatWorks(t *testing.T) {
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(readFile(t, configurationPage), -1)
	if len(examples) < 2 {
		t.Errorf("%d examples", len(examples))
	}
	for _, e := range examples {
		_, err := subnet.ParseConfig([]byte(e[1]))
		complaints := append(subnet.UnknownConfigKeys([]byte(e[1])), subnet.UnusedConfigKeys([]byte(e[1]))...)
		if err != nil || len(complaints) > 0 {
			t.Errorf("%v %v in %s", err, complaints, e[1])
		}
	}
}
