package stages

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/rollout"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// build is which program waypoints are to run: an image, and the build behind its tag.
type build struct{ image, build string }

// wantedBuild is what the control plane deploys; zero if it is one that deploys no waypoints.
func (r *Run) wantedBuild(ctx context.Context) (build, error) {
	control, err := r.Cluster.Kubernetes.AppsV1().Deployments(r.Namespace).Get(ctx, api.ControlPlaneDeployment, metav1.GetOptions{})
	if err != nil {
		return build{}, fmt.Errorf("read Deployment %s/%s: %w", r.Namespace, api.ControlPlaneDeployment, err)
	}
	var b build
	for _, container := range control.Spec.Template.Spec.Containers {
		for _, env := range container.Env {
			switch env.Name {
			case "WAYPOINT_IMAGE":
				b.image = env.Value
			case "WAYPOINT_BUILD":
				b.build = env.Value
			}
		}
	}
	return b, nil
}

// buildOf is what a waypoint's pods run.
func buildOf(d *appsv1.Deployment) build {
	b := build{build: d.Spec.Template.Annotations["ambit.io/build"]}
	if containers := d.Spec.Template.Spec.Containers; len(containers) > 0 {
		b.image = containers[0].Image
	}
	return b
}

// waypoints waits until the control plane, which is of the new chart, has rolled all waypoints onto the new program.
func (r *Run) waypoints(ctx context.Context) error {
	want, err := r.wantedBuild(ctx)
	if err != nil || want == (build{}) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	ticker := time.NewTicker(rollout.DefaultPoll)
	defer ticker.Stop()
	told := ""
	for {
		behind, all, err := r.behind(ctx, want)
		if err == nil {
			if line := fmt.Sprintf("%d of %s of this version", all-len(behind), console.Plural(all, "waypoint")); all > 0 && line != told {
				told = line
				r.Env.Notef("  %s", line)
			}
			if len(behind) == 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			if err != nil {
				return err
			}
			waiter := &rollout.Waiter{Client: r.Cluster.Kubernetes, Note: r.Env.Notef}
			for _, line := range waiter.Troubles(context.WithoutCancel(ctx), behind[0], true) {
				r.Env.Notef("  %s", line)
			}
			return fmt.Errorf("wait for waypoints: %s/%s does not run the new version (%d of %d pods are ready): %w",
				behind[0].Namespace, behind[0].Name, behind[0].Ready, behind[0].Desired, ctx.Err())
		case <-ticker.C:
		}
	}
}

// behind returns the waypoints that do not run a build yet, and how many waypoints there are.
func (r *Run) behind(ctx context.Context, want build) (behind []survey.Part, all int, err error) {
	list, err := r.Cluster.Kubernetes.AppsV1().Deployments("").List(ctx, metav1.ListOptions{LabelSelector: api.LabelGatewayManaged + "=" + api.GatewayManagedWaypoint})
	if err != nil {
		return nil, 0, fmt.Errorf("list Deployments of waypoints: %w", err)
	}
	for i := range list.Items {
		d := &list.Items[i]
		ours := slices.ContainsFunc(d.ManagedFields, func(entry metav1.ManagedFieldsEntry) bool { return entry.Manager == api.GatewayDeployer })
		if !ours || d.DeletionTimestamp != nil {
			continue
		}
		all++
		if part := survey.DeploymentPart(d); buildOf(d) != want || !rollout.Ready(part) {
			behind = append(behind, part)
		}
	}
	return behind, all, nil
}
