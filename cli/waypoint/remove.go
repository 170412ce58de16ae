package waypoint

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
)

func deleteCommand(env *command.Env) *cobra.Command {
	o := &options{env: env}
	var every bool
	cmd := &cobra.Command{
		Use: "delete [NAME...]", Aliases: []string{"rm"},
		Short: "Remove waypoints of a namespace",
		Long: `Removes waypoints of a namespace. Their traffic goes on at layer 4: routes and policies of layer 7 are not applied any more.
Labels that name a waypoint stay; they are told.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 && !every:
				return console.Usagef("name the waypoints, or give --all")
			case len(args) > 0 && every:
				return console.Usagef("give names or --all")
			case len(args) > 0 && o.revision != "":
				return console.Usagef("--revision is for --all")
			}
			return o.delete(cmd.Context(), args)
		},
	}
	o.namespaceFlag(cmd)
	cmd.Flags().BoolVar(&every, "all", false, "all waypoints of the namespace")
	cmd.Flags().StringVarP(&o.revision, "revision", "r", "", "with --all: those of this revision only")
	return cmd
}

func (o *options) delete(ctx context.Context, names []string) error {
	s, err := o.open(ctx)
	if err != nil {
		return err
	}
	var doomed []*gatewayv1.Gateway
	failed := false
	if len(names) == 0 {
		if doomed, err = s.find(ctx); err != nil {
			return err
		}
		if len(doomed) == 0 {
			s.env.Notef("There is no waypoint in namespace %s.", s.namespace)
		}
	}
	for _, name := range names {
		gateway, err := s.get(ctx, name)
		if err != nil {
			failed = true
			if apierrors.IsNotFound(err) {
				s.env.Notef("ambit: %s", s.unknown(name))
			} else {
				s.env.Notef("ambit: %v", err)
			}
			continue
		}
		doomed = append(doomed, gateway)
	}
	f, err := s.gather(ctx, doomed)
	if err != nil {
		return err
	}
	for _, gateway := range doomed {
		if s.revision != "" && revisionOf(gateway) != s.revision {
			continue
		}
		err := s.cluster.Dynamic.Resource(gateways).Namespace(gateway.Namespace).Delete(ctx, gateway.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete Gateway %s: %w", nameOf(gateway), err)
		}
		s.env.Printf("waypoint %s deleted", nameOf(gateway))
		s.stillNamed(f.of(nameOf(gateway)))
	}
	if failed {
		return console.ErrTold
	}
	return nil
}

// stillNamed tells what goes on naming a waypoint that is deleted.
func (s *session) stillNamed(subjects []subject) {
	for i, subject := range subjects {
		if i == mostNamed {
			s.env.Notef("  and %d more", len(subjects)-i)
			return
		}
		instead := "its traffic goes on at layer 4"
		if subject.canary {
			instead = "its other waypoint takes all of its traffic"
		}
		s.env.Notef("  %s still names it; %s. Take the label off:  %s", subject, instead, subject.label(subject.by()+"-"))
	}
}
