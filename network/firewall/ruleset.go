package firewall

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables/expr"

	"github.com/ripstop-net/ripstop/subnet"
)

// Ruleset is what a table holds, as a value. Two mean the same if and only if
// their texts are equal.
type Ruleset struct {
	Sets     []Set
	Counters []string
	Chains   []Chain
}

// Set is a set of addresses of one family. Its elements are not part of it.
type Set struct {
	Name   string
	Family subnet.Family
	// Size is how many elements it takes at most. The kernel keeps a set of a
	// known size in a table that never grows (nft_hash); what it does without
	// (nft_rhash) is resized while it is in use, and a dump of it meanwhile lacks
	// elements.
	Size uint32
	// Lasts, where not 0, makes it a set that rules fill, and is how long an element
	// stays after it was last met.
	Lasts time.Duration
}

// Chain is a base chain, or one that is jumped to if it has no Hook. A base
// chain's policy is accept.
type Chain struct {
	Name, Type, Hook string
	Priority         int32
	Rules            []Rule
}

// Rule is a rule: what it matches, what it does, and a comment.
type Rule struct {
	comment string
	terms   []term
}

// term is a part of a rule: its text in nft's language, and what the kernel is
// told.
type term struct {
	text  string
	exprs []expr.Any
}

func (c *Chain) add(comment string, terms ...term) {
	c.Rules = append(c.Rules, Rule{comment: comment, terms: terms})
}

func (r Rule) body() string {
	var words []string
	for _, t := range r.terms {
		words = append(words, t.text)
	}
	return strings.Join(words, " ")
}

// Comment is the rule's comment with a digest of its text. The kernel gives
// rules back in words of its own, which change from one version to the next,
// but comments as they were: this is by what a rule is known again.
func (r Rule) Comment() string {
	sum := sha256.Sum256([]byte(r.comment + "\x00" + r.body()))
	return fmt.Sprintf("%s #%x", r.comment, sum[:4])
}

// String is the rule in nft's language.
func (r Rule) String() string { return fmt.Sprintf("%s comment %q", r.body(), r.Comment()) }

func (r Rule) exprs() []expr.Any {
	var out []expr.Any
	for _, t := range r.terms {
		out = append(out, t.exprs...)
	}
	return out
}

// Empty tells whether there is nothing in it.
func (r Ruleset) Empty() bool { return len(r.Chains) == 0 }

// String is the table in nft's language: "nft -f" would load it.
func (r Ruleset) String() string {
	if r.Empty() {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	for _, c := range r.Counters {
		fmt.Fprintf(&b, "\tcounter %s {\n\t}\n\n", c)
	}
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n\t\tsize %d\n", s.Name, setTypes[s.Family].Name, s.Size)
		if s.Lasts != 0 {
			fmt.Fprintf(&b, "\t\tflags dynamic,timeout\n\t\ttimeout %ds\n", int(s.Lasts.Seconds()))
		}
		b.WriteString("\t}\n\n")
	}
	// A chain is defined before it is jumped to.
	for _, c := range inOrder(r.Chains) {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.Hook, c.Priority)
		}
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		b.WriteString("\t}\n\n")
	}
	return strings.TrimSuffix(b.String(), "\n") + "}\n"
}

// inOrder puts the chains that are jumped to before those that jump.
func inOrder(chains []Chain) []Chain {
	out := slices.Clone(chains)
	slices.SortStableFunc(out, func(a, b Chain) int {
		return b2i(a.Hook != "") - b2i(b.Hook != "")
	})
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// skeleton describes what is compared with the kernel, line by line, sorted but
// for the order of rules in a chain.
func (r Ruleset) skeleton() []string {
	var out []string
	for _, s := range r.Sets {
		out = append(out, skeletonSet(s.Name, setTypes[s.Family].Name, s.Size, s.Lasts))
	}
	for _, c := range r.Counters {
		out = append(out, skeletonCounter(c))
	}
	for _, c := range r.Chains {
		out = append(out, skeletonChain(c.Name, c.Type, c.Hook, c.Priority, true))
		for i, rule := range c.Rules {
			out = append(out, skeletonRule(c.Name, i, rule.Comment()))
		}
	}
	slices.Sort(out)
	return out
}

func skeletonSet(name, keys string, size uint32, lasts time.Duration) string {
	text := fmt.Sprintf("set %s of %d %s", name, size, keys)
	if lasts != 0 {
		text += fmt.Sprintf(" for %s", lasts)
	}
	return text
}

func skeletonCounter(name string) string { return "counter " + name }

func skeletonChain(name, typ, hook string, priority int32, accept bool) string {
	if hook == "" {
		return "chain " + name
	}
	return fmt.Sprintf("chain %s %s at %s %d accept %t", name, typ, hook, priority, accept)
}

func skeletonRule(chain string, at int, comment string) string {
	return fmt.Sprintf("rule %s %04d %s", chain, at, comment)
}
