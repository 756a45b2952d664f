"""`--judge constant`: always takes the same option. A task's score with it is chance."""

from saebench_meta import Answer, JudgeLoader, hookimpl

saebench_api = 1


class Constant:
    def __init__(self, options, services):
        self.option = options["option"]

    def ask(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if not request.options:  # words are wanted
            return Answer(text=f"nothing is known of this {request.purpose}")
        return Answer(choice=min(self.option, len(request.options)) - 1)


@hookimpl
def saebench_judges():
    return {"constant": JudgeLoader(Constant, options={"option": 1}, summary="always takes the same option")}
