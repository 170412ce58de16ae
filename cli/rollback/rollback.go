// Package rollback is `ambit rollback`: it brings the mesh back to an earlier revision, in the reverse order of an upgrade.
package rollback

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/stages"
	"github.com/ambit-mesh/ambit/cli/survey"
)

const defaultTimeout = 10 * time.Minute

const long = `Rollback brings the mesh back to an earlier revision, by default the last one that was complete before the current one:
the node proxy first, then the node agent and the control plane, each waited for. Custom resource definitions stay as they are:
newer ones serve older parts too.`

// New makes the command.
func New(env *command.Env) *cobra.Command {
	var to int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Bring the mesh back to an earlier revision, part by part",
		Long:  long,
		Args:  command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), env, to, timeout)
		},
	}
	env.NamespaceFlag(cmd.Flags())
	cmd.Flags().IntVar(&to, "to", 0, "number of the revision (default the last complete one before the current)")
	cmd.Flags().DurationVar(&timeout, "timeout", defaultTimeout, "how long each part may take")
	return cmd
}

func run(ctx context.Context, env *command.Env, to int, timeout time.Duration) error {
	mesh, err := stages.Find(ctx, env)
	if err != nil {
		return err
	}
	cluster, namespace, releases, current := mesh.Cluster, mesh.Namespace, mesh.Releases, mesh.Current
	if current == nil {
		return fmt.Errorf("there is no Helm release %q in namespace %s", release.Name, namespace)
	}
	history, err := releases.History()
	if err != nil {
		return err
	}
	var target *release.Revision
	if to == 0 {
		if target = stages.LastComplete(history, current.Number); target == nil {
			return fmt.Errorf("no complete revision is recorded before revision %d", current.Number)
		}
	} else {
		i := slices.IndexFunc(history, func(r *release.Revision) bool { return r.Number == to })
		if i < 0 {
			return console.Usagef("revision %d is not recorded; recorded are %s", to, numbers(history))
		}
		target = history[i]
	}
	chart, vals, err := releases.Stored(target.Number)
	if err != nil {
		return err
	}
	env.Notef("Going back in namespace %s from revision %d (%s) to what was revision %d (%s)",
		namespace, current.Number, current.Version, target.Number, target.Version)
	order := slices.Clone(survey.Components)
	slices.Reverse(order)
	way := &stages.Run{
		Env: env, Cluster: cluster, Releases: releases, Namespace: namespace, Chart: chart, Values: vals,
		Order: order, What: fmt.Sprintf("ambit rollback to revision %d, %s", target.Number, target.Version), Timeout: timeout,
	}
	done, err := way.Do(ctx)
	if err != nil {
		return err
	}
	env.Printf("ambit %s is installed in namespace %s (revision %d, the same as %d).", chart.Version(), namespace, done.Number, target.Number)
	return nil
}

func numbers(history []*release.Revision) string {
	var text string
	for i, r := range history {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprint(r.Number)
	}
	return text
}
