{{- /* Takes (list $ STEP): a container that runs one command of the trainer. */ -}}
{{- define "deepsynth.trainerStep" -}}
{{- $root := index . 0 -}}
{{- $step := index . 1 -}}
{{- $trainer := $root.Values.trainer -}}
- name: {{ $step.name }}
  image: {{ include "deepsynth.image" (list $root $trainer.image) }}
  imagePullPolicy: {{ $trainer.image.pullPolicy }}
  args: {{- toYaml $step.args | nindent 4 }}
  {{- include "deepsynth.container" $root | nindent 2 }}
  env:
    - {name: DEEPSYNTH_TRAINER_DEVICE, value: {{ ternary "cuda" "cpu" $trainer.gpu.enabled }}}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ $root.Values.keys.secretName }}, key: hf-token, optional: true}}
    {{- range $name, $value := $trainer.settings }}
    - {name: {{ $name }}, value: {{ $value | quote }}}
    {{- end }}
  resources: {{- include "deepsynth.resources" (list $trainer.resources $trainer.gpu $trainer.gpu.count) | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: models, mountPath: /var/lib/deepsynth/models}
    - {name: adapters, mountPath: /var/lib/deepsynth/adapters}
    - {name: runs, mountPath: /var/lib/deepsynth/runs}
    {{- if $trainer.data.existingClaim }}
    - {name: data, mountPath: /data, readOnly: true}
    {{- end }}
    {{- if $trainer.gpu.enabled }}
    - {name: shared-memory, mountPath: /dev/shm}
    {{- end }}
{{- end -}}
