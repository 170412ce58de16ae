package rules

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// lockWait is how long an iptables command waits for the lock file, in seconds. Only the legacy kind takes it.
const lockWait = 10

// spare is appended to the name of a chain while it is rewritten under load: the spare one captures meanwhile.
const spare = "_NEW"

// backend is one kind of iptables.
type backend struct {
	kind string // "nft" or "legacy"
	v4   *iptables.IPTables
	v6   *iptables.IPTables // nil where there is no such program
}

func newBackend(kind string) (*backend, error) {
	b := &backend{kind: kind}
	var err error
	if b.v4, err = iptables.New(iptables.Path("iptables-"+kind), iptables.Timeout(lockWait)); err != nil {
		return nil, fmt.Errorf("iptables-%s: %w", kind, err)
	}
	b.v6, err = iptables.New(iptables.Path("ip6tables-"+kind), iptables.IPFamily(iptables.ProtocolIPv6), iptables.Timeout(lockWait))
	if err != nil {
		b.v6 = nil
	}
	return b, nil
}

func (b *backend) program(f Family) *iptables.IPTables {
	if f == IPv6 {
		return b.v6
	}
	return b.v4
}

// read returns what the backend holds in the calling thread's network namespace. It brings no table into being, as
// asking the legacy kind for one would.
func (b *backend) read(ctx context.Context, f Family) (tables, error) {
	command, names := "iptables-"+b.kind+"-save", "/proc/thread-self/net/ip_tables_names"
	if f == IPv6 {
		command, names = "ip6tables-"+b.kind+"-save", "/proc/thread-self/net/ip6_tables_names"
	}
	if b.kind == "legacy" {
		if text, err := os.ReadFile(names); err != nil || len(bytes.TrimSpace(text)) == 0 {
			return tables{}, nil // a kernel without it, or a namespace in which it was never used
		}
	}
	if b.program(f) == nil {
		return tables{}, nil
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(stderr.String()))
	}
	return parseSave(stdout.String()), nil
}

// tables is the content of one kind of iptables in one family: table, chain, rules without "-A chain".
type tables map[string]map[string][]string

// parseSave reads the output of iptables-save.
func parseSave(text string) tables {
	t := tables{}
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

// size is the number of rules and chains made by somebody.
func (t tables) size() int {
	n := 0
	for _, chains := range t {
		for name, rules := range chains {
			n += len(rules)
			if !builtIn(name) {
				n++
			}
		}
	}
	return n
}

func builtIn(chain string) bool {
	return slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, chain)
}

func (t tables) hasChain(table, name string) bool {
	_, ok := t[table][name]
	return ok
}

func (t tables) chain(table, name string) ([]string, bool) {
	rules, ok := t[table][name]
	return rules, ok
}

func (t tables) hooked(table, hook, name string) bool {
	return slices.Contains(t[table][hook], "-j "+name)
}

// slot is a place where a chain of ours may be.
type slot struct {
	table, hook, name string
	stage             Stage
}

// slots are all places, capture first: the order in which they are un-hooked.
func slots() []slot {
	var out []slot
	for _, c := range slices.Backward(For(Config{}).Families[0].Chains) {
		out = append(out, c.slot(), slot{c.Table, c.Hook, c.Name + spare, c.Stage})
	}
	return out
}

func (c Chain) slot() slot { return slot{c.Table, c.Hook, c.Name, c.Stage} }

// marksOfOurs are what rules of this mesh name and nobody else's do: marks with their mask, and the probes' addresses.
func marksOfOurs() []string {
	var out []string
	for _, f := range For(Config{IPv6: true}).Families {
		for _, c := range f.Chains {
			for _, r := range c.Rules {
				for _, word := range r.Spec {
					if strings.HasPrefix(word, "0x") && strings.HasSuffix(word, "/0xfff") {
						out = append(out, " "+word)
					}
				}
			}
			if c.Stage == Capture && c.Name == chainOutput {
				out = append(out, "-d "+c.Rules[0].Spec[1])
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// holds says whether the chain in a slot is there and is ours: empty, or with a rule that only this mesh writes. A
// chain of that name with other content is a sidecar's.
func (t tables) holds(s slot) (ours, foreign bool) {
	rules, there := t.chain(s.table, s.name)
	if !there || len(rules) == 0 {
		return there, false
	}
	for _, r := range rules {
		for _, m := range marksOfOurs() {
			if strings.Contains(" "+r, m) {
				return true, false
			}
		}
	}
	return false, true
}

func (t tables) ours() bool {
	return slices.ContainsFunc(slots(), func(s slot) bool { ours, _ := t.holds(s); return ours })
}

func (t tables) captured() bool {
	return slices.ContainsFunc(slots(), func(s slot) bool {
		ours, _ := t.holds(s)
		return s.stage == Capture && ours && t.hooked(s.table, s.hook, s.name) && len(t[s.table][s.name]) > 0
	})
}

// perBackend is what each kind of iptables holds in one family.
type perBackend map[*backend]tables

func (k *Kernel) read(ctx context.Context, f Family) (perBackend, error) {
	out := perBackend{}
	for _, b := range k.backends {
		t, err := b.read(ctx, f)
		if err != nil {
			return nil, err
		}
		out[b] = t
	}
	return out, nil
}

// choose returns the kind in which rules are to be: where we capture, else where something of ours is, else where there
// is anything, else the host's.
func (p perBackend) choose(k *Kernel) *backend {
	preferred := slices.Clone(k.backends)
	slices.SortStableFunc(preferred, func(a, b *backend) int {
		switch {
		case a == b:
			return 0
		case a == k.host:
			return -1
		case b == k.host:
			return 1
		}
		return 0
	})
	for _, good := range []func(tables) bool{tables.captured, tables.ours, func(t tables) bool { return t.size() > 0 }} {
		for _, b := range preferred {
			if good(p[b]) {
				return b
			}
		}
	}
	return k.host
}

func (p perBackend) foreign() error {
	for b, t := range p {
		for _, s := range slots() {
			if _, foreign := t.holds(s); foreign {
				return fmt.Errorf("iptables-%s, table %s, chain %s: %w", b.kind, s.table, s.name, ErrForeign)
			}
		}
	}
	return nil
}

// fill brings the chains of one family to f in backend b, and hooks those of stage Carry.
func (k *Kernel) fill(ctx context.Context, b *backend, now perBackend, f FamilySet) error {
	ipt, t := b.program(f.Family), now[b]
	if ipt == nil {
		return fmt.Errorf("ip6tables-%s is missing", b.kind)
	}
	for _, c := range f.Chains {
		have, there := t.chain(c.Table, c.Name)
		hooked := t.hooked(c.Table, c.Hook, c.Name)
		right := there && slices.Equal(have, c.specs())
		var err error
		switch {
		case len(c.Rules) == 0:
			err = b.drop(ctx, f.Family, t, c.slot())
		case right && t.hasChain(c.Table, c.Name+spare) && hooked:
			err = b.drop(ctx, f.Family, t, slot{c.Table, c.Hook, c.Name + spare, c.Stage})
		case right && !t.hasChain(c.Table, c.Name+spare):
		case hooked || t.hooked(c.Table, c.Hook, c.Name+spare):
			err = b.rewrite(ctx, ipt, t, c)
		default:
			err = write(ctx, ipt, c.Table, c.Name, c.Rules)
		}
		if err != nil {
			return err
		}
		if c.Stage == Carry && len(c.Rules) > 0 && !hooked {
			if err := step(ctx, ipt.InsertUnique(c.Table, c.Hook, 1, "-j", c.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func write(ctx context.Context, ipt *iptables.IPTables, table, name string, rules []Rule) error {
	if err := step(ctx, ipt.ClearChain(table, name)); err != nil {
		return err
	}
	for _, r := range rules {
		if err := step(ctx, ipt.Append(table, name, r.Spec...)); err != nil {
			return err
		}
	}
	return nil
}

// rewrite changes a chain that is hooked: a spare one with the right rules stands before it meanwhile, so that no packet
// sees neither.
func (b *backend) rewrite(ctx context.Context, ipt *iptables.IPTables, t tables, c Chain) error {
	before := slot{c.Table, c.Hook, c.Name + spare, c.Stage}
	if !t.hooked(before.table, before.hook, before.name) {
		if err := write(ctx, ipt, c.Table, before.name, c.Rules); err != nil {
			return err
		}
		if err := step(ctx, ipt.Insert(c.Table, c.Hook, 1, "-j", before.name)); err != nil {
			return err
		}
	}
	if err := write(ctx, ipt, c.Table, c.Name, c.Rules); err != nil {
		return err
	}
	if err := step(ctx, ipt.InsertUnique(c.Table, c.Hook, 1, "-j", c.Name)); err != nil {
		return err
	}
	for _, remove := range []func() error{
		func() error { return ipt.DeleteIfExists(c.Table, c.Hook, "-j", before.name) },
		func() error { return ipt.ClearAndDeleteChain(c.Table, before.name) },
	} {
		if err := step(ctx, remove()); err != nil {
			return err
		}
	}
	return nil
}

// drop un-hooks and deletes one chain, if it is there.
func (b *backend) drop(ctx context.Context, f Family, t tables, s slot) error {
	if ours, _ := t.holds(s); !ours {
		return nil
	}
	ipt := b.program(f)
	for _, jump := range t[s.table][s.hook] {
		if jump != "-j "+s.name {
			continue
		}
		if err := step(ctx, ipt.Delete(s.table, s.hook, "-j", s.name)); err != nil {
			return err
		}
	}
	return step(ctx, ipt.ClearAndDeleteChain(s.table, s.name))
}

// unhook takes out the jumps to our chains, down to the given stage.
func (b *backend) unhook(ctx context.Context, f Family, t tables, down Stage) error {
	for _, s := range slots() {
		if ours, _ := t.holds(s); !ours || s.stage < down {
			continue
		}
		for _, jump := range t[s.table][s.hook] {
			if jump != "-j "+s.name {
				continue
			}
			if err := step(ctx, b.program(f).Delete(s.table, s.hook, "-j", s.name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// strip removes all that is ours: first every jump, capture first, then the chains, then built-in chains that have
// become empty (the nft kind makes them when something is hooked; the legacy kind has them for good).
func (b *backend) strip(ctx context.Context, f Family, t tables) error {
	if err := b.unhook(ctx, f, t, Carry); err != nil {
		return err
	}
	ipt := b.program(f)
	for _, s := range slots() {
		ours, _ := t.holds(s)
		if !ours {
			continue
		}
		if err := step(ctx, ipt.ClearAndDeleteChain(s.table, s.name)); err != nil {
			return err
		}
		only := !slices.ContainsFunc(t[s.table][s.hook], func(rule string) bool {
			return rule != "-j "+s.name && rule != "-j "+strings.TrimSuffix(s.name, spare) && rule != "-j "+s.name+spare
		})
		if b.kind == "nft" && only {
			// Refused, rightly, if another program put a rule there since we looked.
			_ = ipt.DeleteChain(s.table, s.hook)
		}
	}
	return ctx.Err()
}
