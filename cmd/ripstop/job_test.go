package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/cmd/internal/settings"
)

// TestJobIsTheTools: the job that writes the network config to etcd calls the tool as
// it is, with variables that it reads.
func TestJobIsTheTools(t *testing.T) {
	job, err := os.ReadFile("../../dist/kubernetes/network.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, command, _ := strings.Cut(string(job), "- /usr/bin/ripstop\n")
	command, _, _ = strings.Cut(command, "envFrom:")
	var words []string
	for _, m := range regexp.MustCompile(`(?m)^ +- (\S+)$`).FindAllStringSubmatch(command, -1) {
		words = append(words, m[1])
	}
	cmd, args, err := newRoot().Find(words)
	if err != nil || cmd.CommandPath() != "ripstop config set" {
		t.Fatalf("%v is no command of the tool: %v", words, err)
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Error(err)
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		t.Error(err)
	}
	known := map[string]bool{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { known[settings.EnvironmentName(envPrefix, f.Name)] = true })
	values, err := os.ReadFile("../../dist/kubernetes/settings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?m)^ +(RIPSTOP_\w+):`).FindAllStringSubmatch(string(values), -1)
	if len(named) == 0 {
		t.Error("the settings have no variable of the tool")
	}
	for _, m := range named {
		if !known[m[1]] {
			t.Errorf("the settings have %s, which the tool does not read", m[1])
		}
	}
}
