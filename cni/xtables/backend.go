package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// lockWait is how long a command waits for iptables' lock file, in seconds. Only the legacy kind takes it.
const lockWait = 10

// Family is an address family.
type Family string

// The families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Families are the address families that the calling thread's network namespace has.
func Families() []Family {
	if _, err := os.Stat("/proc/thread-self/net/if_inet6"); err != nil {
		return []Family{IPv4}
	}
	return []Family{IPv4, IPv6}
}

// Backend is one kind of iptables. It may be used in any network namespace, and in several at once.
type Backend struct {
	// Kind is "nft" or "legacy".
	Kind string

	v4, v6 *iptables.IPTables // v6 is nil where there is no such program
}

// Find returns the kinds of iptables whose programs are installed, nft first. It is an error if there is none.
func Find() ([]*Backend, error) {
	var found []*Backend
	var missing []error
	for _, kind := range []string{"nft", "legacy"} {
		v4, err := iptables.New(iptables.Path("iptables-"+kind), iptables.Timeout(lockWait))
		if err != nil {
			missing = append(missing, fmt.Errorf("iptables-%s: %w", kind, err))
			continue
		}
		b := &Backend{Kind: kind, v4: v4}
		v6, err := iptables.New(iptables.Path("ip6tables-"+kind), iptables.IPFamily(iptables.ProtocolIPv6), iptables.Timeout(lockWait))
		if err == nil {
			b.v6 = v6
		}
		found = append(found, b)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find iptables: %w", errors.Join(missing...))
	}
	return found, nil
}

// Program returns what changes tables of the family.
func (b *Backend) Program(f Family) (*iptables.IPTables, error) {
	switch {
	case f == IPv4:
		return b.v4, nil
	case b.v6 == nil:
		return nil, fmt.Errorf("ip6tables-%s: %w", b.Kind, exec.ErrNotFound)
	}
	return b.v6, nil
}

// Read returns what the backend holds. It brings no table into being, as asking the legacy kind for one would.
func (b *Backend) Read(ctx context.Context, f Family) (Tables, error) {
	command, names := "iptables-"+b.Kind+"-save", "/proc/thread-self/net/ip_tables_names"
	if f == IPv6 {
		command, names = "ip6tables-"+b.Kind+"-save", "/proc/thread-self/net/ip6_tables_names"
	}
	if _, err := b.Program(f); err != nil {
		return Tables{}, nil
	}
	if b.Kind == "legacy" {
		if text, err := os.ReadFile(names); err != nil || len(bytes.TrimSpace(text)) == 0 {
			return Tables{}, nil // a kernel without it, or a namespace in which it was never used
		}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(stderr.String()))
	}
	return Parse(stdout.String()), nil
}

// Tables is what one kind of iptables holds in one family: table, chain, rules in the spelling of `iptables -S` without
// "-A chain".
type Tables map[string]map[string][]string

// Parse reads the output of iptables-save.
func Parse(text string) Tables {
	t := Tables{}
	var table map[string][]string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = map[string][]string{}
			t[line[1:]] = table
		case table == nil:
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			table[name] = nil
		case strings.HasPrefix(line, "-A "):
			name, spec, _ := strings.Cut(line[3:], " ")
			table[name] = append(table[name], spec)
		}
	}
	return t
}

// builtIn are the chains that the kernel calls.
var builtIn = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// Size is the number of rules, and of chains that are not built in.
func (t Tables) Size() int {
	n := 0
	for _, chains := range t {
		for name, rules := range chains {
			n += len(rules)
			if !slices.Contains(builtIn, name) {
				n++
			}
		}
	}
	return n
}

// Chain returns the rules of a chain, and whether it is there.
func (t Tables) Chain(table, name string) (rules []string, there bool) {
	rules, there = t[table][name]
	return rules, there
}

// Hooked says whether the built-in chain jumps to the chain.
func (t Tables) Hooked(table, hook, name string) bool {
	return slices.Contains(t[table][hook], "-j "+name)
}
