package waypoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
)

func listCommand(env *command.Env) *cobra.Command {
	o := &options{env: env}
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List waypoints",
		Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return o.list(cmd.Context())
		},
	}
	o.namespaceFlag(cmd)
	o.allFlag(cmd)
	o.formatFlag(cmd)
	return cmd
}

func (o *options) list(ctx context.Context) error {
	s, err := o.open(ctx)
	if err != nil {
		return err
	}
	found, err := s.find(ctx)
	if err != nil {
		return err
	}
	waypoints, f, err := s.describeAll(ctx, found)
	if err != nil {
		return err
	}
	if s.format != "" {
		return s.env.Object(s.format, waypoints)
	}
	s.advise(f.dangling())
	if len(waypoints) == 0 {
		s.none()
		return nil
	}
	return s.table([]string{"NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"}, waypoints, func(w Waypoint) []string {
		return []string{w.Name, w.Revision, w.TrafficType, w.Programmed}
	})
}

func statusCommand(env *command.Env) *cobra.Command {
	o := &options{env: env}
	var wait bool
	cmd := &cobra.Command{
		Use:   "status [NAME...]",
		Short: "Show whether waypoints work, who uses them, and what keeps traffic from going through them",
		Long: `Shows whether waypoints work, and gives advice where traffic does not go through one. It waits until they are ready, at most
--waypoint-timeout, and fails if one is not.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && o.all {
				return console.Usagef("give names or -A")
			}
			if err := o.check(); err != nil {
				return err
			}
			return o.status(cmd.Context(), args, wait)
		},
	}
	o.namespaceFlag(cmd)
	o.allFlag(cmd)
	o.formatFlag(cmd)
	o.timeoutFlag(cmd)
	cmd.Flags().BoolVarP(&wait, "wait", "w", true, "wait until the waypoints are ready")
	return cmd
}

func (o *options) status(ctx context.Context, names []string, wait bool) error {
	o.asks = true
	s, err := o.open(ctx)
	if err != nil {
		return err
	}
	found, err := s.choose(ctx, names)
	if err != nil {
		return err
	}
	for i, gateway := range found {
		if !wait || isProgrammed(gateway) {
			continue
		}
		current, err := s.await(ctx, gateway)
		if current == nil || ctx.Err() != nil {
			return err
		}
		found[i] = current // what it says of itself is shown
	}
	waypoints, f, err := s.describeAll(ctx, found)
	if err != nil {
		return err
	}
	if err := s.showStatus(waypoints, f, len(names) > 0); err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(g *gatewayv1.Gateway) bool { return !isProgrammed(g) }) {
		return console.ErrTold
	}
	return nil
}

func (s *session) showStatus(waypoints []Waypoint, f *facts, named bool) error {
	if s.format != "" {
		return s.env.Object(s.format, waypoints)
	}
	if len(waypoints) == 0 {
		s.none()
	} else {
		err := s.table([]string{"NAME", "STATUS", "TYPE", "REASON", "MESSAGE"}, waypoints, func(w Waypoint) []string {
			return []string{w.Name, w.Programmed, string(gatewayv1.GatewayConditionProgrammed), w.Reason, w.Message}
		})
		if err != nil {
			return err
		}
	}
	for _, w := range waypoints {
		if len(w.Bound) > 0 {
			s.env.Notef("%s/%s is used by %s.", w.Namespace, w.Name, few(w.Bound))
		}
		s.advise(w.Advice)
	}
	if !named {
		s.advise(f.dangling())
	}
	return nil
}

// mostNamed is how many things are named one by one in a line.
const mostNamed = 5

// few names the first of a list.
func few(names []string) string {
	if len(names) <= mostNamed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:mostNamed], ", "), len(names)-mostNamed)
}

func (s *session) none() {
	if s.all {
		s.env.Notef("There is no waypoint in this cluster. Make one:  ambit waypoint apply -n NAMESPACE --enroll-namespace --wait")
		return
	}
	s.env.Notef("There is no waypoint in namespace %s. Make one:  ambit waypoint apply -n %s --enroll-namespace --wait", s.namespace, s.namespace)
}

// choose returns the named waypoints, or, without names, all of the chosen namespaces.
func (s *session) choose(ctx context.Context, names []string) ([]*gatewayv1.Gateway, error) {
	if len(names) == 0 {
		return s.find(ctx)
	}
	var found []*gatewayv1.Gateway
	for _, name := range names {
		gateway, err := s.get(ctx, name)
		if apierrors.IsNotFound(err) {
			err = errors.New(s.unknown(name))
		}
		if err != nil {
			return nil, err
		}
		found = append(found, gateway)
	}
	return found, nil
}

func (s *session) unknown(name string) string {
	return fmt.Sprintf("there is no waypoint %s in namespace %s: ambit waypoint list -A lists all", name, s.namespace)
}

func (s *session) describeAll(ctx context.Context, found []*gatewayv1.Gateway) ([]Waypoint, *facts, error) {
	f, err := s.gather(ctx, found)
	if err != nil {
		return nil, nil, err
	}
	waypoints := []Waypoint{}
	for _, gateway := range found {
		waypoints = append(waypoints, describe(gateway, f))
	}
	return waypoints, f, nil
}

// table writes a row for each waypoint, with its namespace in front where several namespaces are shown.
func (s *session) table(columns []string, waypoints []Waypoint, row func(Waypoint) []string) error {
	w := tabwriter.NewWriter(s.env.Out, 0, 8, 2, ' ', 0)
	line := func(namespace string, cells []string) {
		if s.all {
			cells = append([]string{namespace}, cells...)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	line("NAMESPACE", columns)
	for _, waypoint := range waypoints {
		line(waypoint.Namespace, row(waypoint))
	}
	return w.Flush()
}
