package sockets

import (
	"context"
	"errors"
	"time"

	"github.com/ambit-mesh/ambit/mesh/handover"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// connectDepot connects to the agent's depot.
func (k *Keeper) connectDepot(ctx context.Context) (*handover.Client, error) {
	c, err := handover.Dial(ctx, k.cfg.Depot, k.cfg.Name, k.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.leaves {
		c.Close()
		return nil, errors.New("this proxy is ending")
	}
	k.depot = c
	for id := range k.pods {
		k.todo[id] = true
	}
	return c, nil
}

// keepDeposited keeps a session with the depot, and in it what is shared, until the context ends.
func (k *Keeper) keepDeposited(ctx context.Context) {
	pause := depotFirst
	for ctx.Err() == nil && !k.leaving() {
		k.mu.Lock()
		c := k.depot
		k.mu.Unlock()
		if c == nil {
			var err error
			if c, err = k.connectDepot(ctx); err != nil {
				// An agent of an older release has none.
				k.cfg.Logger.Debug("no depot for sockets", "path", k.cfg.Depot, "error", err, "retry_in", pause)
			}
		}
		if c != nil {
			pause = depotFirst
			err := k.deposit(ctx, c)
			c.Close()
			k.mu.Lock()
			if k.depot == c {
				k.depot = nil
			}
			k.mu.Unlock()
			if ctx.Err() == nil && !k.leaving() {
				k.cfg.Logger.Info("the depot for sockets is gone; its agent is perhaps being replaced", "error", err)
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, depotMax)
	}
}

func (k *Keeper) leaving() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.leaves
}

// deposit serves one session.
func (k *Keeper) deposit(ctx context.Context, c *handover.Client) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		cancel(c.Watch(ctx, watchInterval))
	}()
	defer func() { cancel(nil); <-watched }()
	renew := time.NewTicker(depotRenew)
	defer renew.Stop()
	for {
		for _, id := range k.takeTodo() {
			if err := k.depositPod(c, id); err != nil {
				if !errors.Is(err, handover.ErrRefused) {
					return err
				}
				k.cfg.Logger.Warn("the depot does not take sockets", "error", err)
			}
		}
		select {
		case <-k.changed:
		case <-renew.C:
			k.mu.Lock()
			for id := range k.pods {
				k.todo[id] = true
			}
			k.mu.Unlock()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (k *Keeper) takeTodo() []netns.ID {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []netns.ID
	for id := range k.todo {
		// What another proxy has taken over is for it to deposit.
		if s := k.pods[id]; s == nil || !s.paused {
			all = append(all, id)
		}
	}
	clear(k.todo)
	return all
}

// depositPod has the depot keep what is shared of one namespace, which may be nothing, in place of what it has.
func (k *Keeper) depositPod(c *handover.Client, id netns.ID) error {
	ns := handover.NetNS(id)
	sockets := k.duplicates(id)
	defer func() {
		for _, s := range sockets {
			s.Close()
		}
	}()
	return c.Deposit(ns, sockets)
}
