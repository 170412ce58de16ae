package xtables

import (
	"context"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// spare is appended to the name of a chain while it is rewritten: the spare one does its work meanwhile.
const spare = "_NEW"

// Chain is a chain of ours, with the built-in chain that it is hooked to. A chain without rules is one that is not to be
// there.
type Chain struct {
	Table, Hook, Name string
	// Rules are the arguments of each rule, in the order and spelling of `iptables -S`.
	Rules []string
}

// Place is where a chain may be.
type Place struct{ Table, Name string }

// Places are where the chain may be: its own place, and its spare's.
func (c Chain) Places() []Place {
	return []Place{{c.Table, c.Name}, {c.Table, c.Name + spare}}
}

// Right says whether the chain, apart from its hook, is as it must be, with no spare beside it.
func (c Chain) Right(t Tables) bool {
	have, there := t.Chain(c.Table, c.Name)
	_, half := t.Chain(c.Table, c.Name+spare)
	return !half && there == (len(c.Rules) > 0) && slices.Equal(have, c.Rules)
}

// Write makes the chain right, given what is there. A chain that is hooked stays so, with a right set of rules before
// every packet from the first command on; one that is not stays un-hooked.
func (b *Backend) Write(ctx context.Context, f Family, t Tables, c Chain) error {
	ipt, err := b.Program(f)
	if err != nil {
		return err
	}
	if len(c.Rules) == 0 {
		return b.Drop(ctx, f, t, c.Places()...)
	}
	have, _ := t.Chain(c.Table, c.Name)
	hooked, standing := t.Hooked(c.Table, c.Hook, c.Name), t.Hooked(c.Table, c.Hook, c.Name+spare)
	switch {
	case c.Right(t):
		return nil
	case !hooked && !standing:
		if err := write(ctx, ipt, c.Table, c.Name, c.Rules); err != nil {
			return err
		}
		return b.Drop(ctx, f, t, c.Places()[1])
	case hooked && slices.Equal(have, c.Rules):
		return b.Drop(ctx, f, t, c.Places()[1])
	}
	if !standing {
		if err := write(ctx, ipt, c.Table, c.Name+spare, c.Rules); err != nil {
			return err
		}
		if err := step(ctx, ipt.Insert(c.Table, c.Hook, 1, "-j", c.Name+spare)); err != nil {
			return err
		}
	}
	if err := write(ctx, ipt, c.Table, c.Name, c.Rules); err != nil {
		return err
	}
	if err := step(ctx, ipt.InsertUnique(c.Table, c.Hook, 1, "-j", c.Name)); err != nil {
		return err
	}
	if err := step(ctx, ipt.DeleteIfExists(c.Table, c.Hook, "-j", c.Name+spare)); err != nil {
		return err
	}
	return step(ctx, ipt.ClearAndDeleteChain(c.Table, c.Name+spare))
}

func write(ctx context.Context, ipt *iptables.IPTables, table, name string, rules []string) error {
	if err := step(ctx, ipt.ClearChain(table, name)); err != nil {
		return err
	}
	for _, r := range rules {
		if err := step(ctx, ipt.Append(table, name, strings.Fields(r)...)); err != nil {
			return err
		}
	}
	return nil
}

// Hook makes the chain's jump the first rule of its built-in chain, unless it is hooked. With first, it is moved there if
// it stands behind another rule.
func (b *Backend) Hook(ctx context.Context, f Family, t Tables, c Chain, first bool) error {
	ipt, err := b.Program(f)
	if err != nil {
		return err
	}
	jump, jumps := "-j "+c.Name, t[c.Table][c.Hook]
	at := slices.Index(jumps, jump)
	if at == 0 || (at > 0 && !first) {
		return nil
	}
	if err := step(ctx, ipt.Insert(c.Table, c.Hook, 1, "-j", c.Name)); err != nil {
		return err
	}
	if at > 0 { // the old one is one further down now, and a deletion by content would take the new one
		return step(ctx, ipt.DeleteById(c.Table, c.Hook, at+2))
	}
	return nil
}

// Unhook removes every rule of a built-in chain that jumps to one of the chains.
func (b *Backend) Unhook(ctx context.Context, f Family, t Tables, places ...Place) error {
	ipt, err := b.Program(f)
	if err != nil {
		return err
	}
	for _, p := range places {
		for _, j := range t.jumps(p) {
			if err := step(ctx, ipt.Delete(p.Table, j.hook, strings.Fields(j.rule)...)); err != nil {
				return err
			}
		}
	}
	return nil
}

// jump is a rule of a built-in chain that leads to a chain of ours.
type jump struct{ hook, rule string }

func (t Tables) jumps(p Place) []jump {
	var out []jump
	for _, hook := range builtIn {
		for _, rule := range t[p.Table][hook] {
			if rule == "-j "+p.Name || strings.HasSuffix(rule, " -j "+p.Name) {
				out = append(out, jump{hook, rule})
			}
		}
	}
	return out
}

// Reached says whether a built-in chain leads to the chain.
func (t Tables) Reached(p Place) bool { return len(t.jumps(p)) > 0 }

// Drop un-hooks and deletes the chains that are there.
func (b *Backend) Drop(ctx context.Context, f Family, t Tables, places ...Place) error {
	places = slices.DeleteFunc(slices.Clone(places), func(p Place) bool { _, there := t.Chain(p.Table, p.Name); return !there })
	if len(places) == 0 {
		return nil
	}
	if err := b.Unhook(ctx, f, t, places...); err != nil {
		return err
	}
	ipt, err := b.Program(f)
	if err != nil {
		return err
	}
	for _, p := range places { // they may lead to each other
		if err := step(ctx, ipt.ClearChain(p.Table, p.Name)); err != nil {
			return err
		}
	}
	for _, p := range places {
		if err := step(ctx, ipt.DeleteChain(p.Table, p.Name)); err != nil {
			return err
		}
	}
	return nil
}

// Tidy deletes the built-in chains that held nothing but jumps to the chains, after those have been dropped. Only the nft
// kind can, and needs it: there a built-in chain of table nat is what keeps translating the connections that it once
// redirected. The legacy kind has them for good.
func (b *Backend) Tidy(f Family, t Tables, places ...Place) {
	ipt, err := b.Program(f)
	if err != nil || b.Kind != "nft" {
		return
	}
	ours := map[Place][]string{} // the rules of a built-in chain that are gone
	for _, p := range places {
		for _, j := range t.jumps(p) {
			at := Place{p.Table, j.hook}
			ours[at] = append(ours[at], j.rule)
		}
	}
	for at, rules := range ours {
		if len(rules) == len(t[at.Table][at.Name]) {
			// Refused, rightly, if somebody put a rule there since it was read.
			_ = ipt.DeleteChain(at.Table, at.Name)
		}
	}
}

// step ends a sequence of commands at the first error, or when the context ended.
func step(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	return ctx.Err()
}
