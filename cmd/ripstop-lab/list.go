package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newList(at *place) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"status"},
		Short:   "List the labs with their nodes and pods",
		Example: `  ripstop-lab list`,
		Args:    arguments(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return list(cmd.OutOrStdout(), at.dir) },
	}
}

func list(out io.Writer, dir string) error {
	folders, err := filepath.Glob(filepath.Join(dir, "*", "state.json"))
	if err != nil {
		return err
	}
	slices.Sort(folders)
	if len(folders) == 0 {
		say(out, "No lab is up. Bring one up with '%s up'.\n", os.Args[0])
	}
	for _, path := range folders {
		at := &place{dir: dir, name: filepath.Base(filepath.Dir(path))}
		s, err := at.running()
		if err != nil {
			say(out, "%v\n", err)
			continue
		}
		say(out, "Lab %q (%s, process %d):\n", at.name, s.Mode, s.PID)
		t := table(out)
		for _, m := range s.Machines {
			say(t, "  %s\t%s\t%s\n", m.Name, joined(m.Addresses), m.Note)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func joined(list []netip.Addr) string {
	texts := make([]string, 0, len(list))
	for _, v := range list {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ", ")
}
