package waypoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/rollout"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// fieldManager owns what `ambit waypoint apply` writes.
const fieldManager = "ambit"

// applyOptions are the flags of `apply` alone.
type applyOptions struct {
	name, traffic           string
	enroll, overwrite, wait bool
}

func applyCommand(env *command.Env) *cobra.Command {
	o := &options{env: env}
	var a applyOptions
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Make a waypoint, or change one",
		Long: `Makes a waypoint in a namespace, or changes the one of that name. Services use it once they, or their namespace, have the label
istio.io/use-waypoint with its name, which --enroll-namespace sets.`,
		Example: `  ambit waypoint apply -n shop --enroll-namespace --wait
  ambit waypoint apply -n shop --name pods --for workload`,
		Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmp.Or(checkTraffic(a.traffic), o.check()); err != nil {
				return err
			}
			return o.apply(cmd.Context(), a)
		},
	}
	o.namespaceFlag(cmd)
	o.formatFlag(cmd)
	o.revisionFlag(cmd)
	o.timeoutFlag(cmd)
	gatewayFlags(cmd, &a.name, &a.traffic)
	cmd.Flags().BoolVar(&a.enroll, "enroll-namespace", false, "label the namespace, so that its services use the waypoint")
	cmd.Flags().BoolVar(&a.overwrite, "overwrite", false, "with --enroll-namespace: also where the namespace uses another waypoint")
	cmd.Flags().BoolVarP(&a.wait, "wait", "w", false, "wait until the waypoint is ready")
	return cmd
}

// gatewayFlags are those that say what the Gateway is.
func gatewayFlags(cmd *cobra.Command, name, traffic *string) {
	cmd.Flags().StringVar(name, "name", defaultName, "name of the waypoint")
	cmd.Flags().StringVar(traffic, "for", "", "traffic that is sent to it: "+strings.Join(trafficTypes, ", ")+" (default service)")
}

func generateCommand(env *command.Env) *cobra.Command {
	o := &options{env: env}
	var name, traffic string
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Print the Gateway of a waypoint; needs no cluster",
		Args:  command.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := cmp.Or(checkTraffic(traffic), o.check()); err != nil {
				return err
			}
			if o.format == "" {
				o.format = "yaml"
			}
			return env.Object(o.format, manifest(o.namespace, name, traffic, o.revision).Object)
		},
	}
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", "", "namespace of the waypoint (default none is printed)")
	o.formatFlag(cmd)
	o.revisionFlag(cmd)
	gatewayFlags(cmd, &name, &traffic)
	return cmd
}

func (o *options) apply(ctx context.Context, a applyOptions) error {
	s, err := o.open(ctx)
	if err != nil {
		return err
	}
	ns, err := s.cluster.Kubernetes.CoreV1().Namespaces().Get(ctx, s.namespace, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", s.namespace, err)
	}
	if used := usedBy(ns.Labels, s.namespace).first; a.enroll && !a.overwrite && used != (key{}) && used != (key{s.namespace, a.name}) {
		return fmt.Errorf("namespace %s uses waypoint %s already: --overwrite replaces it", s.namespace, used)
	}
	if ns.Labels[api.LabelUseWaypoint] == api.UseWaypointNone && a.enroll && !a.overwrite {
		return fmt.Errorf("namespace %s is to use no waypoint (label %s=%s): --overwrite replaces that", s.namespace, api.LabelUseWaypoint, api.UseWaypointNone)
	}
	before, err := s.get(ctx, a.name)
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return err
	default: // flags that are not given leave what is there
		if a.traffic == "" {
			a.traffic = before.Labels[api.LabelWaypointFor]
		}
		if s.revision == "" {
			s.revision = before.Labels[api.LabelRevision]
		}
	}
	applied, err := s.cluster.Dynamic.Resource(gateways).Namespace(s.namespace).Apply(ctx, a.name,
		manifest(s.namespace, a.name, a.traffic, s.revision), metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("apply Gateway %s/%s: %w", s.namespace, a.name, err)
	}
	if s.format == "" {
		s.env.Printf("waypoint %s/%s applied", s.namespace, a.name)
	}
	if a.enroll {
		if err := s.enrol(ctx, a.name); err != nil {
			return err
		}
	}
	gateway, err := decode(applied)
	if err != nil {
		return err
	}
	var waited error
	if a.wait {
		if gateway, waited = s.await(ctx, gateway); waited != nil && gateway == nil {
			return waited
		}
	}
	return errors.Join(s.told(ctx, gateway), waited)
}

// enrol has the namespace use the waypoint.
func (s *session) enrol(ctx context.Context, name string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{
		api.LabelUseWaypoint: name, api.LabelUseWaypointNamespace: nil,
	}}})
	if err != nil {
		return err
	}
	_, err = s.cluster.Kubernetes.CoreV1().Namespaces().Patch(ctx, s.namespace, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("label namespace %s: %w", s.namespace, err)
	}
	if s.format == "" {
		s.env.Printf("namespace %s labelled %s=%s", s.namespace, api.LabelUseWaypoint, name)
	}
	return nil
}

// told shows a waypoint after it was applied, and what a person should know of it.
func (s *session) told(ctx context.Context, gateway *gatewayv1.Gateway) error {
	s.asks = true
	f, err := s.gather(ctx, []*gatewayv1.Gateway{gateway})
	if err != nil {
		return err
	}
	w := describe(gateway, f)
	if s.format != "" {
		return s.env.Object(s.format, w)
	}
	s.advise(w.Advice)
	if len(w.Bound) > 0 {
		s.env.Notef("Connections that are open stay as they are until they end; new ones go through the waypoint once it is ready.")
	}
	return nil
}

func (s *session) advise(advice []Advice) {
	for _, a := range advice {
		s.env.Notef("Note: %s", a)
	}
}

// await waits until a waypoint is programmed, telling whenever something changes, and returns it as it was last seen: nil if it was
// never seen, or is gone.
func (s *session) await(ctx context.Context, gateway *gatewayv1.Gateway) (*gatewayv1.Gateway, error) {
	late := errors.New("not ready in time")
	waitCtx, cancel := context.WithTimeoutCause(ctx, s.timeout, late)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	name, last, told := gateway.Name, gateway, ""
	for {
		current, err := s.cluster.Dynamic.Resource(gateways).Namespace(gateway.Namespace).Get(waitCtx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, fmt.Errorf("wait for waypoint %s: it was deleted", nameOf(gateway))
		case err == nil:
			if last, err = decode(current); err != nil {
				return nil, err
			}
			if line := s.progress(waitCtx, last); line != told {
				told = line
				s.env.Notef("  %s", line)
			}
			if isProgrammed(last) {
				return last, nil
			}
		}
		select {
		case <-waitCtx.Done():
			for _, line := range s.troubles(context.WithoutCancel(ctx), last) {
				s.env.Notef("  %s", line)
			}
			condition := programmed(last)
			return last, fmt.Errorf("wait for waypoint %s: %w: %s is %s: %s: %s", nameOf(gateway), context.Cause(waitCtx),
				condition.Type, condition.Status, condition.Reason, condition.Message)
		case <-ticker.C:
		}
	}
}

// progress says in a line how far a waypoint is.
func (s *session) progress(ctx context.Context, gateway *gatewayv1.Gateway) string {
	condition := programmed(gateway)
	line := fmt.Sprintf("%s: %s", nameOf(gateway), condition.Reason)
	if condition.Status != metav1.ConditionTrue {
		line = fmt.Sprintf("%s: %s: %s", nameOf(gateway), condition.Reason, condition.Message)
	}
	if part := s.part(ctx, gateway); part != nil {
		line += fmt.Sprintf(" (%d of %s ready)", part.Ready, console.Plural(part.Desired, "pod"))
	}
	return line
}

// part is the Deployment that was made for a waypoint; nil if there is none.
func (s *session) part(ctx context.Context, gateway *gatewayv1.Gateway) *survey.Part {
	list, err := s.cluster.Kubernetes.AppsV1().Deployments(gateway.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{api.LabelGatewayName: gateway.Name}.String(),
	})
	if err != nil || len(list.Items) == 0 {
		return nil
	}
	part := survey.DeploymentPart(&list.Items[0])
	return &part
}

// troublesTimeout bounds the requests that find out what keeps a waypoint's pods.
const troublesTimeout = 10 * time.Second

// troubles says what keeps a waypoint's pods.
func (s *session) troubles(ctx context.Context, gateway *gatewayv1.Gateway) []string {
	ctx, cancel := context.WithTimeout(ctx, troublesTimeout)
	defer cancel()
	part := s.part(ctx, gateway)
	if part == nil {
		return nil
	}
	waiter := &rollout.Waiter{Client: s.cluster.Kubernetes, Namespace: gateway.Namespace, Note: s.env.Notef}
	return waiter.Troubles(ctx, *part, true)
}
